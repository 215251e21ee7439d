"""The file formats: erasers, activations, and safetensors files of models."""
