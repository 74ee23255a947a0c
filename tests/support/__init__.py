"""What lets verl train on a CPU in the tests: a device platform, a rollout replica and patches of verl at run time.

`support.verl_cpu` is what every Ray process imports (VERL_USE_EXTERNAL_MODULES); tests/verl_runs.py starts the runs.
"""
