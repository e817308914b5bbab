"""What tutorials written for SGLang import from its ``test`` package."""
