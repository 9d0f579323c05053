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

// cache is the file with the last list. The zero value of path is none. It holds
// no secret: the list is what anybody can see who may connect to the load balancer.
type cache struct {
	path    string
	create  func(path string) (*os.File, error) // a new file beside path
	written cached                              // what the file says
	broken  string                              // why it could not be written last
}

// cached is the file's content.
type cached struct {
	Backends []string `json:"backends"`         // the last list
	Former   []string `json:"former,omitempty"` // were in a list before, the newest first
}

func (c cached) equal(other cached) bool {
	return slices.Equal(c.Backends, other.Backends) && slices.Equal(c.Former, other.Former)
}

// maxFormer is how many backends that are gone are remembered.
const maxFormer = 8

// followedBy is the content with a new list.
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

// read is empty without an error where there is no file.
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
		return cached{}, fmt.Errorf("%s: no file of ours", c.path)
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
			return cached{}, fmt.Errorf("%s: %q is no ADDRESS:PORT", c.path, b)
		}
	}
	if len(content.Backends) == 0 {
		return cached{}, fmt.Errorf("%s: no backend in it", c.path)
	}
	c.written = content
	return content, nil
}

// write puts the list into the file, if it is not there, whole or not at all.
// complaint is the error when it is another one than before.
func (c *cache) write(content cached) (complaint string, err error) {
	if c.path == "" || c.written.equal(content) {
		return "", nil
	}
	if err := c.replace(content); err != nil {
		err = fmt.Errorf("%s: %w", c.path, why(err))
		if text := oneLine(err); text != c.broken {
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
	if err = fill(f, append(data, '\n')); err == nil {
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

// fill writes the data to the disk, and closes f in any case.
func fill(f *os.File, data []byte) error {
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil { // whatever the umask is
		return err
	}
	return f.Sync()
}

// why is an error of the file system without the name of the file, which is
// another one each time.
func why(err error) error {
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

// createBeside has a name of its own for each writer: in an upgrade there are two.
func createBeside(path string) (*os.File, error) {
	return os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
}
