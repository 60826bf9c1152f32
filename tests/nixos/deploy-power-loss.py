"""The plug is pulled in the middle of a deployment: after the boot one release serves, and the journal says which.

Other moments are in deploy-killed-everywhere.py.
"""
# guest: time-limit 900

machine.wait_for_unit("multi-user.target")
prepare_deployments()
start_good_stack()
old, new = build_release("old"), build_release("new")
machine.succeed(f"aistack deploy app --image {old}")

for text, after, expected in (("has to stay so", 0.5, "interrupted"), (phase_begins("switch"), 0.4, "rolled-back")):
    with subtest(f"the plug is pulled {after} s after {text}"):
        assert lose_power_in_deployment(new, text, after) == expected
        assert current("app")["image_ref"] == old
