"""A run as a folder: what identifies it, its checkpoints, its scores, its end.

run           one run from its first step to the saved SAE
side_by_side  the training loop, for runs that share their rows
learner       what a run asks of what it trains
sae_learner   an SAE as that
sae           the SAE of a run, at its start and as saved
scores        scores on held-out rows
silent_start  a warning where most latents are silent from the first step
finite        stopping where numbers are no longer finite
identity      whether a folder holds this run
checkpoints   the state of training on disk
baseline      the frozen decoder beside a run
output        what a run writes there, and whether it did
process       which device and which process
"""
