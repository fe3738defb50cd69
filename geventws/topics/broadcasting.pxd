cimport cython

from geventws.connection cimport Connection
from geventws.protocol.shared cimport SharedMessage
from geventws.session cimport DefaultWebSocketSession
from geventws.switching cimport current
from geventws.topics.delivery cimport Delivery, deliver


@cython.locals(shared=SharedMessage, delivery=Delivery)
cpdef broadcast(sessions, message, slow=*)
cpdef SharedMessage shared_message(message)
@cython.locals(connections=list, session=DefaultWebSocketSession, connection=Connection)
cdef list _connections(sessions, hub)
