package etcd

import (
	"errors"
	"time"

	"kthwd/appliance/etcd/dbcopy"
)

// Copying returns since when a Copy of the database is open, as for a backup; zero for none.
func (e *Member) Copying() time.Time {
	return e.copies.Since()
}

// OpenCopy opens a copy of the database as it is now.
func (e *Member) OpenCopy() (*dbcopy.Copy, error) {
	server := e.Running()
	if server == nil {
		return nil, errors.New("etcd has not started")
	}
	end := e.copies.Begin()
	c, err := dbcopy.NewCopy(server.Server.Backend())
	if err != nil {
		end()
		return nil, err
	}
	c.OnClose(end)
	return c, nil
}
