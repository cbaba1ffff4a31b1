"""Foreign SAE formats, one file each: their names, tensor layouts and traps.

opened               the common shape: a place, and the SAE in our terms
tensor_files         tensors from safetensors, .npz and .pt, without running code
recognise            which format the files at a place are of
saelens              the SAELens inference folder, which is our own format
convert              an SAE written for another program
gemma_scope          Gemma Scope of Gemma 2
gemma_scope_2        Gemma Scope of Gemma 3
qwen_scope           Qwen-Scope
llama_scope          Llama Scope, and how its SAEs fold
llamascopium         its present form, and R1-Distill
sparsify             EleutherAI's sparsify
dictionary_learning  the seven classes of dictionary_learning
crosscoder           crosscoders of a fork of it
circuit_tracer       circuit-tracer's sets of transcoders, one a layer
openai               OpenAI's SAEs of GPT-2
goodfire             Goodfire's SAEs, and others of two linear layers
peer_names           what other libraries call what is here
"""
