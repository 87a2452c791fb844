"""The networks that GPU measurements run: as files of models, and as bare loops."""
