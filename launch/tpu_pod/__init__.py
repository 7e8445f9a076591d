"""The modules of launch/tpu.py: gcloud commands, checks before the launch, state, log streaming, and the launch itself.

Standard library only. `worker.py` is the script that runs on the workers.
"""
