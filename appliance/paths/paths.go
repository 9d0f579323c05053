// Package paths decides which paths kthwd may use, and where.
//
// Problem says why a path cannot be one of kthwd's settings. Plain tells whether a path
// may stand in a URL and in a list with commas as it is; etcd and its client take their
// socket in both. RemoveSocket makes room for a listener, and never removes anything but
// a socket. Written finds the place at which another user could have written a file that is about to be executed.
//
// The package imports nothing of kthwd. Package text quotes a path for a shell.
package paths

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Longest is the longest directory, in bytes, that Problem accepts. It leaves room for
// the names of the files in it below PATH_MAX, 4096.
const Longest = 3800

const longestName = 255 // NAME_MAX of the usual file systems

// Problem returns the reason why path cannot be used, or "". The reason follows the
// path in a sentence. A path with control characters would break the lines of the log,
// and one that is not UTF-8 would break the metrics and JSON in which it stands.
func Problem(path string) string {
	switch {
	case !utf8.ValidString(path):
		return "is not UTF-8"
	case strings.ContainsFunc(path, unicode.IsControl):
		return "contains a control character, such as the end of a line"
	case len(path) > Longest:
		return fmt.Sprintf("has %d bytes: want %d at most", len(path), Longest)
	}
	for name := range strings.SplitSeq(path, "/") {
		if len(name) > longestName {
			return fmt.Sprintf("has a name of %d bytes: want %d at most", len(name), longestName)
		}
	}
	return ""
}

// Plain reports whether path means the same in a URL, in a list with commas and alone:
// it has letters, digits and /._- only.
func Plain(path string) bool {
	return !strings.ContainsFunc(path, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/._-", r)
	})
}

// ErrNotSocket means that something other than a socket has the path of a socket.
var ErrNotSocket = errors.New("exists and is not a socket")

// FreeForSocket returns nil if path does not exist or is a socket, and an error that
// wraps ErrNotSocket if it is anything else.
func FreeForSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s: %w", path, ErrNotSocket)
	}
	return nil
}

// RemoveSocket removes the socket that a killed process left at path, if there is one.
// It fails if path is anything else.
func RemoveSocket(path string) error {
	if err := FreeForSocket(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
