"""A run as a folder: what it is identified by, its checkpoints, its end.

run           one run from its first step to the saved SAE
side_by_side  the training loop, for runs that share their rows
identity      whether a folder holds this run
checkpoints   the state of training on disk
baseline      the frozen decoder beside a run
process       which device and which process
"""
