"""The output of a harvest: the plan of a store and its shards, made by one process or many.

plan          everything that determines the rows
shard_claims  which shards a process makes
model         the model and tokenizer, and their facts for the plan
model_state   what rows depend on beside the model's name and configuration
forward       batches of contexts through the model
resuming      what a resumed harvest compares before it writes
write         the loop from documents to committed shards
progress      the bar, with tokens a second
"""
