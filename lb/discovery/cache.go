package discovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// cache is the file with the last list; an empty path means no file. It holds no secret:
// every client of the load balancer can learn the list.
type cache struct {
	path    string
	create  func(path string) (*os.File, error) // creates a new file in the directory of path
	written cached                              // the content of the file
	broken  string                              // the last write error that was reported
}

// cached is the content of the file.
type cached struct {
	Backends []string `json:"backends"`         // the last list
	Former   []string `json:"former,omitempty"` // backends of earlier lists, the newest first
}

func (c cached) equal(other cached) bool {
	return slices.Equal(c.Backends, other.Backends) && slices.Equal(c.Former, other.Former)
}

// maxFormer is the most former backends remembered.
const maxFormer = 8

// followedBy returns the content after a new list.
func (c cached) followedBy(list []string) cached {
	former := slices.DeleteFunc(slices.Concat(c.Backends, c.Former), func(b string) bool { return slices.Contains(list, b) })
	var kept []string
	for _, b := range former {
		if !slices.Contains(kept, b) && len(kept) < maxFormer {
			kept = append(kept, b)
		}
	}
	return cached{slices.Clone(list), kept}
}

const maxCache = 1 << 20

// read returns empty content without an error when there is no file.
func (c *cache) read() (content cached, err error) {
	if c.path == "" {
		return cached{}, nil
	}
	info, err := os.Stat(c.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return cached{}, nil
	case err != nil:
		return cached{}, err
	case !info.Mode().IsRegular() || info.Size() > maxCache:
		return cached{}, fmt.Errorf("%s: not a cache file: it must be a regular file of at most 1 MiB", c.path)
	}
	data, err := os.ReadFile(c.path)
	if err != nil {
		return cached{}, err
	}
	if err := json.Unmarshal(data, &content); err != nil {
		return cached{}, fmt.Errorf("%s: %w", c.path, err)
	}
	for _, b := range slices.Concat(content.Backends, content.Former) {
		if a, err := netip.ParseAddrPort(b); err != nil || a.Port() == 0 {
			return cached{}, fmt.Errorf("%s: %q is not ADDRESS:PORT", c.path, b)
		}
	}
	if len(content.Backends) == 0 {
		return cached{}, fmt.Errorf("%s: no backend in it", c.path)
	}
	c.written = content
	return content, nil
}

// write replaces the file if its content differs, as a whole or not at all. complaint is
// the error as one line, unless it was reported before.
func (c *cache) write(content cached) (complaint string, err error) {
	if c.path == "" || c.written.equal(content) {
		return "", nil
	}
	if err := c.replace(content); err != nil {
		err = fmt.Errorf("%s: %w", c.path, withoutPath(err))
		if text := joinLines(err); text != c.broken {
			c.broken, complaint = text, text
		}
		return complaint, err
	}
	c.written, c.broken = content, ""
	return "", nil
}

func (c *cache) replace(content cached) error {
	data, err := json.Marshal(content)
	if err != nil {
		return err
	}
	f, err := c.create(c.path)
	if err != nil {
		return err
	}
	if err = writeAndClose(f, append(data, '\n')); err == nil {
		err = os.Rename(f.Name(), c.path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	dir, err := os.Open(filepath.Dir(c.path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// writeAndClose writes the data to the disk, and closes f in any case.
func writeAndClose(f *os.File, data []byte) error {
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil { // independent of the umask
		return err
	}
	return f.Sync()
}

// withoutPath returns a file system error without the name of the file, which differs
// each time.
func withoutPath(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &link):
		return link.Err
	}
	return err
}

// createBeside gives each writer a unique file name: during an upgrade there are two.
func createBeside(path string) (*os.File, error) {
	return os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
}
