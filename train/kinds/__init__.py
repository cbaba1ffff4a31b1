"""How each kind of SAE is trained: its gradients, one file a kind, and what the kinds share.

choice       the kind that a configuration asks for
kind         what the trainer asks of a kind
topk         TopK and Multi-TopK
batchtopk    BatchTopK
matryoshka   Matryoshka BatchTopK
l1           what kinds under an L1 penalty share
relu         ReLU under an L1 penalty
refit        ReLU without the penalty, after its selection is learned
gated        Gated
jumprelu     JumpReLU
end_to_end   any kind, by the loss of the language model
workspace    pairs, and memory that a step uses again
few_pairs    when a dense kind turns to the sparse kernels
auxk         AuxK, which revives dead latents
contraction  the contractive penalty
"""
