package paths

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// OpenRegular opens a file for reading that another user may have put there: it never waits, as the
// opening of a FIFO does, and refuses what is no regular file, such as a device. Without follow it
// refuses a symbolic link in the file's place, too, which could lead to a file that only this
// user may read.
func OpenRegular(path string, follow bool) (*os.File, fs.FileInfo, error) {
	flags := os.O_RDONLY | syscall.O_NONBLOCK
	if !follow {
		flags |= syscall.O_NOFOLLOW
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// ReadRegular returns the first most bytes of a file that OpenRegular opens without following a link.
func ReadRegular(path string, most int64) ([]byte, fs.FileInfo, error) {
	f, info, err := OpenRegular(path, false)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most))
	return data, info, err
}
