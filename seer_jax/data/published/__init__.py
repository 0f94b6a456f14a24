"""Published test sets, in the layouts that their authors gave them."""
