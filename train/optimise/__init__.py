"""One batch of training: the optimiser's step and what surrounds it.

trainer    one SAE, one optimiser, one step at a time
schedules  the learning rate over a run
precision  how float32 products are computed
initial    what training starts from
dead       how long each latent has been silent
resample   dead latents given a new start
fold       the scale of training folded into the weights
"""
