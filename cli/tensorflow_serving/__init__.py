"""``batchyard tfs``: tensorflow_model_server's command line and files, as a configuration."""
