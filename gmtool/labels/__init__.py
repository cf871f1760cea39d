"""Files of labeling tools: read them into a data set, and write predicted masks for them to correct."""
