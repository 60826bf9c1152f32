"""Safe deployments: plan, lock, validate, build, test in isolation, switch, verify, probation, bless, or revert.

`engine` walks through the phases; each of the other modules does one of them. What must work without any of this, after
a crash or at boot, is in `aistack.hooks` (`deploys`, `lock`, `recover`).
"""
