"""Writers of predicted masks for labeling tools, one a tool."""
