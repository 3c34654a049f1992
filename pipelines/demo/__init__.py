"""The embedded demo: drawn charts and two small models built from nothing, so that the pipeline runs anywhere.

Nothing is downloaded: the charts are drawn, the teacher and the student are trained here, on charts which
the pipeline's own training and evaluation never see.
"""
