"""From text to batches: documents, tokens, a store on disk, bins of one length, their order, batches.

Reading order: files, corpus, split, tokenizer, training, workers, manifest, build, packing, store, order, batches.
Nothing is imported here, so that a tokenising process starts quickly.
"""
