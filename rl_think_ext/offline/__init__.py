"""Without training: how much thinking helps a model on a text, where it does, and stored rollouts scored again."""
