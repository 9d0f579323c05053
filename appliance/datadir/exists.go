package datadir

import "os"

// Exists reports whether path exists and can be examined.
func Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
