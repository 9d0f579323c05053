package datadir

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"strings"

	"kthwd/appliance/pki"
)

// Identity is this controller's name in the leases: the same in every
// life of this data directory, so that a controller that was killed takes its
// own lease up again at once. The data directory's lock makes that safe: no two
// processes have it at a time.
func Identity(l pki.Layout, name string) (string, error) {
	data, err := os.ReadFile(l.InstanceID())
	if errors.Is(err, fs.ErrNotExist) {
		id := make([]byte, 8)
		if _, err := rand.Read(id); err != nil {
			return "", err
		}
		data = []byte(hex.EncodeToString(id) + "\n")
		err = os.WriteFile(l.InstanceID(), data, 0o600)
	}
	if err != nil {
		return "", err
	}
	return name + "_" + strings.TrimSpace(string(data)), nil
}
