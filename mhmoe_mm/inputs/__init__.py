"""Images and texts as the networks read them: the same in training, evaluation and single use.

    images.py         files and PIL images to pixels
    pixels.py         pixels to the size of the net, and to a batch
    tokenization.py   a text to ids
    sentencepiece_model.py   SentencePiece models as tokenizers
    texts.py          texts to a batch, and what a checkpoint remembers of how
    given.py          whatever a caller has: paths, PIL images, arrays, one or several

Knows no network and no shards.
"""
