"""Checkpoints that are no Hugging Face folders of safetensors, read for `bertjax import`.

`convert` finds out what a folder holds. `pickled` reads transformers' older weight files, `tf_bundle` the checkpoints
of TensorFlow, whose variables `google_bert` and `mesh_t5` know, and `t5x` those of T5X. All give tensors the names that
transformers has for them.
"""
