"""Sequences about one image as one forward pass.

The language model and the vision tower are frozen, so everything asked about an image shares that image's work. Its
sequences form a tree: the image and the words before the first question are the trunk, questions the branches, answers
the twigs. `layout` lays a tree out as one sequence, `mask` says who sees whom, `vision` brings the image's features in
after the trainable connector, `forward` scores every answer, `batching` splits and packs trees, `trl` lets TRL's
trainers read their log-probabilities from it. Imported by a running stage alone: it imports torch.
"""
