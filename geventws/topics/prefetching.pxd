cpdef void prefetch(list connections, Py_ssize_t index) noexcept
