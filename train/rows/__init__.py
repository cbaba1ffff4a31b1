"""What a run trains on: rows of stores or streams, in an order that seed and step alone decide.

protocol        what a run asks of its rows
row_order       which rows make a batch
row_buffer      rows mixed in memory
joined_stores   several stores as one
store_rows      rows of stores
stream_rows     rows of a model that runs meanwhile
pair_rows       rows of two places side by side, for a transcoder
store_contexts  whole contexts, for training through the model
input_scale     the number that rows are multiplied by
"""
