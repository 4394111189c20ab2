# # what_if
