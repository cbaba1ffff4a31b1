"""Training of the SAE's relatives: what only training needs, on the runs that SAEs have too.

config       what a training is asked for
single       one relative
learner      one as what a run trains
pca          the covariance summed, in place of steps
deep_belief  phases of pretraining, and fine-tuning
rbm          a restricted Boltzmann machine: free energy, and its contrastive divergence
"""
