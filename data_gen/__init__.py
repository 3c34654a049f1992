"""Making training data from images: the image manifest, generated questions and answers, filters."""
