package lib_test

# Not loaded: this call would be refused.
test_owns if io.jwt.decode("")
