package tune

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

const (
	codePages = 128 << 20 // of the binary, which the kernel counts to the group that reads them first
	needStep  = 64 << 20

	needEnds = 0.9 // the finding ends when the need is this part of the limit
)

// needOf is how many bytes a process needs whose heap has live bytes at the last collection,
// collected as tightly as while idle, with the tenth that softLimit leaves.
func needOf(now account) uint64 {
	heap := now.live + now.live*idleGrowth/100
	need := (heap + now.beside + codePages) / 9 * 10
	return (need + needStep - 1) / needStep * needStep
}

// need compares what the process needs with what it may use.
type need struct {
	unit string
	log  *slog.Logger

	mu             sync.Mutex
	before         uint64 // what the run before needed; 0 if that is not known
	bytes, allowed uint64
	limited        bool      // by a control group, not by the machine
	since          time.Time // zero while there is enough
}

// compare takes what the process needs now.
func (n *need) compare(needs, allowed uint64, limited bool, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bytes, n.allowed, n.limited = needs, allowed, limited
	switch {
	case allowed == 0: // not known
	case needs > allowed && n.since.IsZero():
		n.since = now
		f := n.finding()
		n.log.Warn(f.Text, "hint", f.Do)
	case float64(needs) < needEnds*float64(allowed):
		n.since = time.Time{}
	}
}

func (n *need) findings() []status.Finding {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.since.IsZero() {
		return nil
	}
	return []status.Finding{n.finding()}
}

func (n *need) finding() status.Finding {
	f := status.Finding{Health: status.Degraded, Kind: "memory_low", Since: n.since}
	f.Text = fmt.Sprintf("this controller needs %s of memory for the objects of its cluster, and the machine has %s: the kernel is likely to end it",
		text.Bytes(int64(n.bytes)), text.Bytes(int64(n.allowed)))
	f.Do = "give the machine more memory, or delete objects that nobody needs: kthwd etcd space shows them"
	if n.limited {
		f.Text = fmt.Sprintf("this controller needs %s of memory for the objects of its cluster, and its control group allows %s: the kernel is likely to end it",
			text.Bytes(int64(n.bytes)), text.Bytes(int64(n.allowed)))
		f.Do = fmt.Sprintf("systemctl set-property %s MemoryMax=%dM, or raise the container's limit; it applies at once", n.unit, n.bytes>>20)
	}
	return f
}
