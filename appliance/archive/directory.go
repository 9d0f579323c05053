package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"kthwd/appliance/durable"
)

// Entry is an archive in a directory, by its name and its last line.
type Entry struct {
	File      string    `json:"file"` // its path
	Name      string    `json:"name"` // of the controller that made it
	Created   time.Time `json:"created"`
	Revision  int64     `json:"revision"`
	Size      int64     `json:"size"`
	Cluster   string    `json:"cluster"`
	Encrypted bool      `json:"encrypted"`
	Problem   string    `json:"problem,omitempty"` // why it is no archive that can be used
}

// List returns the archives in dir, the newest first. It reads names and last lines only,
// so it takes no notice of damage inside.
func List(dir string) (all []Entry, err error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		m := named.FindStringSubmatch(n.Name())
		if m == nil || !n.Type().IsRegular() {
			continue
		}
		e := Entry{File: filepath.Join(dir, n.Name()), Name: m[1]}
		e.Created, _ = time.Parse(timeFormat, m[2])
		e.Revision, _ = strconv.ParseInt(m[3], 10, 64)
		if a, err := look(e.File); err == nil {
			e.Size, e.Cluster, e.Encrypted = a.Size, a.Cluster, a.Encrypted
			a.Close()
		} else if errors.Is(err, fs.ErrNotExist) {
			continue // pruned meanwhile
		} else {
			e.Problem = strings.TrimPrefix(err.Error(), e.File+": ")
		}
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b Entry) int {
		return b.Created.Compare(a.Created)
	})
	return all, nil
}

// Pruning is what Prune does.
type Pruning struct {
	Delete []string // the archives to delete, or deleted
	Kept   []string // archives that Prune would delete, and keeps: see Prune
}

// Verified is an archive that was verified just now.
type Verified struct {
	File  string
	Lacks []string // see MissingKeys
}

// replaces reports whether the archive may take the place of another one: an archive without keys of CAs
// takes that of an archive which may have them only if the same controller made both.
func (v Verified) replaces(e Entry, by string) bool {
	return len(v.Lacks) == 0 || e.Name == by || !e.mayHaveKeys()
}

// mayHaveKeys reports whether keys of CAs are in the archive, or cannot be ruled out.
func (e Entry) mayHaveKeys() bool {
	if e.Encrypted {
		return true
	}
	a, err := Open(e.File)
	if err != nil {
		return true
	}
	defer a.Close()
	return len(MissingKeys(a.Manifest)) == 0
}

// PlanPrune returns which archives Prune would delete. It reads archives until it has
// found a whole one of each cluster. If verified has a file, only archives that it can replace
// are looked at: those of its cluster, without the archives of other controllers that may have keys
// of CAs which it lacks.
func PlanPrune(dir string, keep int, verified Verified) (p Pruning, err error) {
	if keep < 1 {
		return p, fmt.Errorf("cannot keep %d archives: want 1 or more", keep)
	}
	all, err := List(dir)
	if err != nil {
		return p, err
	}
	clusters := map[string][]Entry{}
	only := slices.IndexFunc(all, func(e Entry) bool { return e.File == verified.File })
	for _, e := range all {
		if e.Problem == "" && (only < 0 || e.Cluster == all[only].Cluster && verified.replaces(e, all[only].Name)) { // nobody knows whose the others are, so a person must delete them
			clusters[e.Cluster] = append(clusters[e.Cluster], e)
		}
	}
	for _, entries := range clusters {
		if len(entries) <= keep {
			continue
		}
		whole := slices.IndexFunc(entries, func(e Entry) bool { return e.File == verified.File || Check(e.File) == nil })
		for i, e := range entries[keep:] {
			if i+keep == whole || whole < 0 {
				p.Kept = append(p.Kept, e.File)
				continue
			}
			p.Delete = append(p.Delete, e.File)
		}
	}
	slices.Sort(p.Delete)
	slices.Sort(p.Kept)
	return p, nil
}

// Prune deletes all archives in dir but the keep newest of each cluster. The newest whole
// archive of a cluster stays, however old it is: Pruning.Kept has it if it is not among the
// keep newest. verified is as for PlanPrune.
func Prune(dir string, keep int, verified Verified) (Pruning, error) {
	p, err := PlanPrune(dir, keep, verified)
	if err != nil {
		return p, err
	}
	for i, file := range p.Delete {
		if err := Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			p.Delete = p.Delete[:i]
			return p, err
		}
	}
	if len(p.Delete) == 0 {
		return p, nil
	}
	return p, durable.Sync(dir)
}
