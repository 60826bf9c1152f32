"""A deployment is killed, or asked to end: one release serves afterwards, ready, and the journal says which.

All the other moments are in deploy-killed-everywhere.py.
"""
# guest: time-limit 900

machine.wait_for_unit("multi-user.target")
prepare_deployments()
start_good_stack()
old, new = build_release("old"), build_release("new")
machine.succeed(f"aistack deploy app --image {old}")
check_one_release_serves()

for text, after, way in (("has to stay so", 0.5, "timer"), (phase_begins("switch"), 0.3, "hand")):
    with subtest(f"SIGKILL {after} s after {text}, ended by {way}"):
        assert cut_off(new, text, after) == -9
        recover_by(way)
        assert check_one_release_serves() in ("interrupted", "rolled-back")

with subtest("SIGKILL when a bridge has taken the name, and its restart has not come"):
    prepare_deployments("bridge")
    assert cut_off(new, phase_begins("switch"), 0.5) == -9
    recover_by("hand")
    assert check_one_release_serves() == "rolled-back"

with subtest("Ctrl-C in the switch goes back by itself, and leaves no lock"):
    assert cut_off(new, phase_begins("switch"), 0.3, 2) == 7
    assert check_one_release_serves() == "rolled-back"
