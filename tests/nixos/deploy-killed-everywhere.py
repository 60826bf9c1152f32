"""As deploy-killed.py, in every phase and in between: 30 times SIGKILL, and every phase asked to end."""
# guest: slow some forty deployments
# guest: time-limit 3000

import random

PHASES = ("plan", "lock", "validate", "build", "test", "switch", "verify", "probation", "bless")
WAYS = ("hand", "what the timer starts", "timer")

# What is deployed, how, and when it is killed: seconds after a text in its events.
IN_A_RESTART = [
    *((phase_begins(phase), 0.0) for phase in PHASES),
    (phase_begins("build"), 0.4),
    (phase_begins("test"), 0.5),
    ("starting the candidate", 0.2),
    ("has to stay so", 0.5),
    (phase_ends("test"), 0.0),
    (phase_begins("switch"), 0.3),
    (phase_begins("switch"), 0.9),
    (phase_begins("probation"), 1.5),
]
IN_A_BRIDGE = [
    (phase_ends("test"), 0.4),
    ("a bridge answers", 0.0),
    (phase_begins("switch"), 0.5),
    (phase_begins("switch"), 1.6),
    (phase_begins("verify"), 0.0),
    (phase_begins("probation"), 0.0),
]
IN_A_REVERT = [(phase_begins("revert"), 0.0), (phase_begins("revert"), 0.4), (phase_begins("revert"), 1.2)]
AT_RANDOM = 4

machine.wait_for_unit("multi-user.target")
prepare_deployments()
start_good_stack()
old, new, bad = build_release("old"), build_release("new"), build_release("bad", fails_live=True)
machine.succeed(f"aistack deploy app --image {old}")
good = current("app")["id"]
chance = random.Random(0)
moments = [("restart", new, *moment) for moment in IN_A_RESTART]
moments += [("restart", bad, *moment) for moment in IN_A_REVERT]
for _ in range(AT_RANDOM):
    moments.append(("restart", new, phase_begins(chance.choice(PHASES[2:])), round(chance.uniform(0.0, 3.0), 1)))
moments += [("bridge", new, *moment) for moment in IN_A_BRIDGE]
before = "restart"
outcomes: dict[str, int] = {}

for number, (strategy, tag, text, after) in enumerate(moments):
    way = WAYS[number % len(WAYS)]
    with subtest(f"SIGKILL {number + 1} of {len(moments)}: {strategy}, {after} s after {text}; ended by {way}"):
        if strategy != before:
            prepare_deployments(strategy)
            before = strategy
        # Another one each time: a release that was good before is a case of its own.
        build_copy(f"{tag}-{number}", tag)
        code = cut_off(f"{tag}-{number}", text, after)
        # It may have come to its end before.
        assert code in (-9, 0, 7), code
        recover_by(way)
        outcome = check_one_release_serves()
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        machine.log(f"exit code {code}, {outcome}")
        if current("app")["id"] != good:
            machine.succeed(f"aistack rollback app --to {good} --yes")
            wait_for_release("app", good, "good")
machine.log(f"{len(moments)} times SIGKILL: {outcomes}")

for strategy, phases in (("restart", PHASES), ("bridge", ("switch", "verify"))):
    prepare_deployments(strategy)
    for phase in phases:
        for signal in (2, 15) if phase in ("test", "switch") else (2,):
            with subtest(f"signal {signal} in phase {phase}, {strategy}: as it was, or gone back from"):
                code = cut_off(new, phase_begins(phase), 0.2, signal)
                # What was good before has no probation: it can be at its end by then.
                expected = {
                    "verify": (7, 0),
                    "probation": (7, 0),
                    "bless": (0,),
                    "plan": (130, -15),
                    "lock": (130, -15),
                }
                assert code in expected.get(phase, (7,) if phase == "switch" else (130,)), code
                outcome = check_one_release_serves()
                if current("app")["id"] != good:
                    machine.succeed(f"aistack rollback app --to {good} --yes")
                    wait_for_release("app", good, "good")

for strategy, tag, text, after in (
    ("restart", new, phase_begins("build"), 0.3),
    ("restart", new, "starting the candidate", 0.3),
    ("restart", new, phase_begins("verify"), 0.0),
    ("restart", new, phase_begins("probation"), 0.5),
    ("restart", bad, phase_begins("revert"), 0.3),
    ("bridge", new, phase_begins("switch"), 0.5),
):
    with subtest(f"the plug is pulled {after} s after {text}, {strategy}"):
        lose_power_in_deployment(tag, text, after, strategy)
        if current("app")["id"] != good:
            machine.succeed(f"aistack rollback app --to {good} --yes")
            wait_for_release("app", good, "good")
