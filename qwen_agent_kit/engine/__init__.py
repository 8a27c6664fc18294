"""The engine: ids in, ids out. Its modules import torch and are only imported when a model is opened."""
