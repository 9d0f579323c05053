package observe

import (
	"fmt"
	"testing"
	"time"

	"kthwd/appliance/etcdspace"
	"kthwd/test/kthwtest"
)

// growingData makes the samples of the last day say that the database fills within a day.
func growingData(t *testing.T) scene {
	c := kthwtest.Start(t, kthwtest.Options{})
	c.WaitReady(t)
	set := func(perDay int64) {
		now := time.Now().Unix()
		const day = 24 * 3600
		value := fmt.Sprintf(`{"at":[%d,%d,%d],"inUse":[0,%d,%d]}`, now-day, now-day/2, now, perDay/2, perDay)
		if _, err := c.Etcd(t).Put(t.Context(), etcdspace.SamplesKey, value); err != nil {
			t.Fatal(err)
		}
	}
	return scene{
		controllers: []*kthwtest.Controller{c},
		make:        func(*server) { set(8 << 30) },
		mend:        func(*server) { set(0) },
	}
}
