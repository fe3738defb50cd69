cpdef current()
cpdef switch(target)
