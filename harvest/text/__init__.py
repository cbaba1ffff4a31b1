"""The input of a harvest: documents from files, datasets, mixtures and chats, as token ids.

documents     a stream of documents that can be resumed
sources       which source a dataset argument means
dataset_rows  the rows of a `datasets` dataset
text_files    text and JSON-lines files
mixture       several sources by weight
chat          conversations through a chat template
tokenized     documents as token ids, packed into shards
"""
