"""Cloud TPUs by what is published of them and by their compiler, which runs on any machine."""
