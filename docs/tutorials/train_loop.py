# # train_loop
