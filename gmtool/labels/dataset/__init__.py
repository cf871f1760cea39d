"""Import into a data set: classes, parts, painting, writing, record, report."""
