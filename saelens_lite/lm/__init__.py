"""The live language model: its parts, hooks, which tokens a hook touches, and what its predictions lose.

decoder        the blocks, width and head of any causal language model
observed_pass  three tokens through a model: what each block takes, adds and hands on
block_inputs   where a block's attention and MLP take in what they work on
hooks          read a hook point, stop early, edit
forward_state  what is known of the forward pass in progress
positions      which tokens an edit is for
replacement    the model on an SAE's reconstruction
losses         cross-entropy and KL of logits
store_losses   the same losses over the contexts of a store
token_text     token ids as readable pieces
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
