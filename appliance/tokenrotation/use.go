package tokenrotation

import (
	"context"
	"encoding/json"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/stages"
	"kthwd/appliance/tokenkeys"
)

// keepEvery is the pause between two records of the use of the old key.
const keepEvery = 10 * time.Second

// useRecord is the use of the old key that a controller has seen, so that its restart does not forget
// the accounts. Only that controller reads it.
type useRecord struct {
	Key string        `json:"key"` // its ID
	Use tokenkeys.Use `json:"use"`
}

// keptUse is the content of the record in etcd.
type keptUse struct {
	key   string // empty before the first look
	count int
	at    time.Time
}

// usesPrefix is followed by the name of a controller.
var usesPrefix = kind.Prefix + "used/"

func (r *Rotation) useKey() string { return usesPrefix + r.cfg.Name }

// keepUse takes the use that an earlier process has seen over, and then keeps the record up to date. An
// empty key removes it. Only follow calls it.
func (r *Rotation) keepUse(ctx context.Context, client *clientv3.Client, key string, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, stages.RecordTimeout)
	defer cancel()
	if key == "" {
		if r.kept.key == "" {
			return nil
		}
		_, err := client.Delete(ctx, r.useKey())
		if err == nil {
			r.kept = keptUse{}
		}
		return err
	}
	if r.kept.key != key {
		answer, err := client.Get(ctx, r.useKey())
		if err != nil {
			return err
		}
		var before useRecord
		if len(answer.Kvs) > 0 && json.Unmarshal(answer.Kvs[0].Value, &before) == nil && before.Key == key {
			r.cfg.Tokens.Resume(key, before.Use)
		}
		r.kept = keptUse{key: key, count: before.Use.Count}
	}
	use := r.cfg.Tokens.UseOf(key)
	if use == nil || use.Count == r.kept.count || now.Sub(r.kept.at) < keepEvery {
		return nil
	}
	value, err := json.Marshal(useRecord{key, *use})
	if err == nil {
		_, err = client.Put(ctx, r.useKey(), string(value))
	}
	if err == nil {
		r.kept.count, r.kept.at = use.Count, now
	}
	return err
}
