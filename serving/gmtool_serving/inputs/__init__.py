"""Input images: files, folders, globs, lists, videos, shards of a job."""
