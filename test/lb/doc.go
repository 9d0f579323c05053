// Package lb breaks a load balancer and its surroundings, and measures what clients
// notice: the failure table of kthwd --role=lb.
//
//	make test-e2e                                              # tests kthwd against its targets
//	make test-lb-peers                                         # runs nginx and HAProxy through the same script, too
//	KTHWD_LB_ROWS=2,6 make test-lb-peers                       # these rows only
//	KTHWD_LB_BIN=PROGRAM KTHWD_E2E=1 go test -v ./test/lb      # a program that takes the same flags
//
// It needs root, and ip of iproute2; otherwise it is skipped with the reason. It prints
// a table and one line of JSON that begins with {"table":"kthwd-lb-failures". Only kthwd
// is held to targets; the figures of the others are recorded.
//
// # How it is done
//
// Each row has three backends, clients and the balancer in separate network namespaces,
// joined by a bridge; four rows run at a time. No packet leaves them. A backend is a TLS
// server in a separate process, which answers /readyz, short requests and watches.
// Client A opens new TLS connections at a fixed rate, usually 20 per second, with one
// request each and a time limit of 10 s. Client B holds long streams: beating ones get
// a line per second, idle ones get none, and talking ones send a line per second.
//
//	1    a backend is killed with SIGKILL
//	2    a backend's link is down: no connection is answered or refused
//	     (neighbours are fixed, so that ARP does not report the host after 3 s)
//	3    SIGSTOP of a backend: its kernel accepts, but no data follows
//	4    a backend serves for 2 s and refuses for 2 s, for a minute
//	5    all are killed, one returns after 12 s; 5b: all answer not ready
//	6    each is restarted in turn: /readyz fails, 5 s later it stops, then returns
//	7a   a backend is added, another removed; 7b: the balancer is replaced twice,
//	     with 1000 watches
//	9a   1000 silent clients; 9b: 300 clients and 200 descriptors
//	10   30 clients vanish: their link is down
//	11   SIGSTOP of the balancer for 3 s
//	12   /readyz of a backend takes 1.5 s, longer than a check may
//	13   5 % and then 10 % of the packets from and to backends are lost, each way
//	14   the backends are one name with three addresses, one of which is silent (HAProxy
//	     has server-template and a resolvers section; nginx resolves at its start, or
//	     follows the name where the free version can)
//	15   the address to listen on comes after the start (--freebind; HAProxy's transparent;
//	     net.ipv4.ip_nonlocal_bind for nginx, which has no option for it)
//	16   5000 clients connect at once
//	17   5 clients read nothing for 45 s, while their kernels answer
//
// Row 8, idle connections, is a part of test/benchlb.
//
// nginx has the guide's configuration and defaults otherwise. HAProxy has checks of
// /readyz over TLS, option redispatch, and the timeouts that it demands: 5 s to connect,
// an hour of silence. Replacing nginx means its reload, and replacing HAProxy means that
// its master starts a new worker: connections see the same as in an upgrade.
//
// # What the figures mean
//
// A request is timed from its start. Requests under way when a fault starts are left out
// where the fault destroys sent data (1, 2, 4): no balancer can repeat a request that it
// does not understand. "Begun after" is relative to the fault. "> 20 s" means that the
// event did not occur within that time. A delay of data is the longest time from the
// backend's sending of a line to its arrival at the client.
//
// Counts are asserted exactly. Times are asserted with room for a busy machine, and
// printed as measured: a row with 5.2 s for a target of 5 s passes, and shows it.
//
// # What it does not show
//
// The backends are not API servers: they have no state, restart in milliseconds, and
// their /readyz costs nothing. Clients do not use HTTP/2, nor retry as client-go does.
// One balancer is tested, not the move of its address to another machine. Round trips
// take microseconds, so the cost of waiting for one does not show.
package lb
