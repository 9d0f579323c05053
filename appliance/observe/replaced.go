package observe

import (
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"kthwd/appliance/status"
)

// replacedShown is the time after which most tokens of the keys before have ended, and a
// client that is still refused has been noticed.
const replacedShown = 24 * time.Hour

// replaced are keys that this start or an earlier one has found replaced.
type replaced struct {
	mu  sync.Mutex
	all map[string]time.Time // by path
}

// Replaced says that the keys in a file have been others since at, and logs what follows. It
// may be called at any time.
func (w *Watch) Replaced(path string, at time.Time) {
	w.replaced.add(path, at)
	for _, file := range w.files.all {
		if f, ok := replacedFinding(file, at); ok && file.Path == path {
			w.files.log.Warn(f.Text, "hint", f.Do)
		}
	}
}

func (r *replaced) add(path string, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[string]time.Time{}
	}
	r.all[path] = at
}

// findings has a finding for each of the files in use.
func (r *replaced) findings(files []File, now time.Time) (all []status.Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, file := range files {
		at, ok := r.all[file.Path]
		if !ok || now.Sub(at) > replacedShown {
			continue
		}
		if f, ok := replacedFinding(file, at); ok {
			all = append(all, f)
		}
	}
	return all
}

// replacedFinding says what follows from other keys in a file; false: nothing.
func replacedFinding(file File, at time.Time) (f status.Finding, ok bool) {
	f = status.Finding{Health: status.Degraded, Kind: "keys_replaced", Since: at}
	name := filepath.Base(file.Path)
	switch file.Role {
	case TokenKeys:
		f.Text = fmt.Sprintf("tokens from before %s are refused: %s holds another key since then", clock(at), name)
		f.Do = fmt.Sprintf("put the old %s and its key back, or append the old public key to %s; then restart kthwd", name, file.Path)
	case CA:
		f.Text = fmt.Sprintf("certificates from before %s are refused: %s holds another CA since then", clock(at), name)
		f.Do = fmt.Sprintf("put the old %s and its key back, or issue the certificates of nodes and users anew", name)
	default:
		return f, false
	}
	return f, true
}
