package datadir

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"kthwd/appliance/durable"
	"kthwd/appliance/pki"
)

// Identity returns this controller's name in the leases. It stays the same for the life
// of the data directory, so that a controller that was killed resumes its own lease at
// once. That is safe because only one process can hold the directory's lock.
func Identity(l pki.Layout, name string) (string, error) {
	data, err := readOwn(l.InstanceID())
	if errors.Is(err, fs.ErrNotExist) {
		id := make([]byte, 8)
		if _, err := rand.Read(id); err != nil {
			return "", err
		}
		data = []byte(hex.EncodeToString(id) + "\n")
		err = durable.Write(l.InstanceID(), data, 0o600)
	}
	if err != nil {
		return "", err
	}
	return name + "_" + strings.TrimSpace(string(data)), nil
}

func readOwn(path string) ([]byte, error) {
	f, err := openOwn(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 4<<10))
}
