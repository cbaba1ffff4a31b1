"""The output of a harvest: the plan of a store and its shards, made by one process or many.

plan          everything that determines the rows
shard_claims  which shards a process makes
model         the model and tokenizer, and their facts for the plan
forward       batches of contexts through the model
write         the loop from documents to committed shards
progress      the bar, with tokens a second
"""
